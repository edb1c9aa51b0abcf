"""Images: from folders and arrays, decoded with care; drawn scenes; planted cues."""
