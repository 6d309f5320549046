//! The vhost-user service with a driver in this process, and with a real VM.

mod guest;
mod qemu;
mod requests;
mod site;
