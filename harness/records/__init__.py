"""What a run writes: records by content, their keys, their store and their circumstances."""
