"""Teachers: policies read from the files of many libraries, and their training."""
