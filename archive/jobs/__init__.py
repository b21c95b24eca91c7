"""What is done in the background, by one worker process."""
