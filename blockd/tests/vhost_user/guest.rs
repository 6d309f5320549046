//! A driver in this process.
