//! A front end and its guest that mean no good: messages with descriptors, rings, chains and kicks in any order. The service neither fails
//! nor hangs, answers what is to be answered, and keeps neither descriptors nor memory of a client that is gone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use tern_fuzz::front_end::run;
use tern_fuzz::made_of;
use tern_fuzz::served::Served;

const SIZE_BYTES: u64 = 256 << 10;

fuzz_target!(|data: &[u8]| {
    static SERVED: OnceLock<Served> = OnceLock::new();
    let served = SERVED.get_or_init(|| Served::vhost_user(SIZE_BYTES));
    if let Some(input) = made_of(data) {
        run(served, input);
    }
});
