"""The field's claims, one a file: each a function from the lab to a finding."""
