"""What is wrong with a dataset although every file in it is sound: junk captions, copies, leaks."""
