"""Reading and writing the files that other programs share with us."""
