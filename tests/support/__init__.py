"""What tests stand on: a clock that they set, and both servers in this process on real databases."""
