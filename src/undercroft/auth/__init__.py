"""Who may do what: credentials, the grants they stand for, and the gates that ask for them."""
