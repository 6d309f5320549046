//! Whole sessions with the NBD service: a handshake, requests in batches, an end in peace or in the middle of something. Every option has
//! exactly one final answer and every request exactly one reply, nothing is answered that was not asked, lengths are those that were asked
//! for, and what is read is what acknowledged writes say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use tern_fuzz::made_of;
use tern_fuzz::nbd_client::Session;
use tern_fuzz::served::Served;

/// Small, so that requests meet.
const SIZE_BYTES: u64 = 64 << 10;

fuzz_target!(|data: &[u8]| {
    static SERVED: OnceLock<Served> = OnceLock::new();
    let served = SERVED.get_or_init(|| Served::nbd(SIZE_BYTES));
    if let Some(input) = made_of(data) {
        Session::run(served, input);
    }
});
