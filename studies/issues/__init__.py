"""What is wrong with a data set as a whole, each kind of issue in a file of its own."""
