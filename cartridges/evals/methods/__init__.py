"""Methods, one family a file: functions from a workshop to something that answers."""
