//! The vhost-user service with two drivers in this process, one that behaves and one that need not, and with a real VM.

mod chains;
mod driver;
mod front_end;
mod holding;
mod hostile;
mod lifecycle;
mod messages;
mod obstruction;
mod qemu;
mod raw;
mod requests;
mod site;
mod sys;
mod wire;
