"""Whether figures can be believed: checked, compared, made again, published."""
