//! How two sites meet.
