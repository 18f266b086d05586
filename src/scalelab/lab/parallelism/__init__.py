"""What the labs on parallelism import beside the subject: recorded studies, pictures, plumbing."""
