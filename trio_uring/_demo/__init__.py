"""The demonstration: a file server with clients, compared to trio's."""
