//! NATS as tower services, and its backlog as a signal.
