"""Who does the steps of a sweep's cells: `local`, one process after the other, or `ray`, many nodes."""
