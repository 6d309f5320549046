//! TLS: with the clients that people use, with certificates that are not good, and with clients that try to get around it.

mod certificates;
mod clients;
mod hostile;
mod logged;
