"""From a video file to a clip: which frames, of which size, decoded under a time limit."""
