"""The resources that tokens are issued for, and the scopes each one has."""
