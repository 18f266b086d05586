"""What the labs on scaling laws import beside the subject: reading of the recorded sweep, plumbing of studies."""
