//! `zstd -3` of the blocks of an image that are not zero: what a copy through a pipe would send.

use crate::program;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(600);
const BLOCK_BYTES: usize = 4096;

/// What went in and what came out.
pub struct Compressed {
    pub content_bytes: u64,
    pub compressed_bytes: u64,
}

/// Compresses the image into `scratch`, which is gone afterwards.
pub fn compress(image: &Path, scratch: &Path) -> Result<Compressed> {
    let mut command = program::bounded(LIMIT, "zstd");
    let mut zstd = command.args(["-3", "--quiet", "--force", "-o"]).arg(scratch).stdin(Stdio::piped()).spawn().context("zstd")?;
    let mut pipe = zstd.stdin.take().context("zstd takes no input")?;
    let mut image = BufReader::with_capacity(1 << 20, File::open(image)?);
    let (mut block, mut content_bytes) = ([0; BLOCK_BYTES], 0);
    loop {
        match image.read_exact(&mut block) {
            Ok(()) if block == [0; BLOCK_BYTES] => {}
            Ok(()) => {
                pipe.write_all(&block)?;
                content_bytes += BLOCK_BYTES as u64;
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        }
    }
    drop(pipe);
    ensure!(zstd.wait()?.success(), "zstd failed");
    let compressed_bytes = scratch.metadata()?.len();
    std::fs::remove_file(scratch)?;
    Ok(Compressed { content_bytes, compressed_bytes })
}
