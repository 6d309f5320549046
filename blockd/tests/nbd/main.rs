//! The NBD service with the clients that people use, and with clients that nobody should use.

mod clients;
mod extended;
mod flushes;
mod hostile;
mod lifecycle;
mod promises;
mod raw;
mod site;
mod tls;
