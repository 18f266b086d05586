"""What the labs on scaling laws import beside the subject: recorded sweeps, plumbing of studies."""
