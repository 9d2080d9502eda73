"""An installation in one file: written from one database, read into another."""
