"""A page on which people ask a checkpoint about pictures, change its budget and see what that keeps (`quota app`)."""
