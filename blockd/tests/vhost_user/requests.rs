//! What the driver writes is in the image, and what is in the image it reads.

use crate::driver::{Driver, content};
use crate::site::Site;
use crate::sys::Direction::{Read, Write};
use blockd::metrics::RequestOp;
use blockd::request::Access;
use virtio_driver::VirtioBlkFeatureFlags;

const MIB: usize = 1 << 20;

#[test]
fn the_device_says_what_it_is() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let driver = Driver::connect(&site.socket(), 1, MIB);
    let config = driver.config();
    assert_eq!(u64::from(config.capacity), (64 << 20) / 512);
    assert_eq!(u32::from(config.blk_size), site.volume.image.align_bytes().max(512) as u32);
    assert_eq!((u32::from(config.seg_max), u32::from(config.size_max)), (126, 256 << 10));
    assert_eq!((u16::from(config.num_queues), config.writeback, config.write_zeroes_may_unmap), (64, 1, 1));
    assert!(driver.features().contains(VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::DISCARD | VirtioBlkFeatureFlags::MQ));
    assert!(!driver.features().contains(VirtioBlkFeatureFlags::RO));
}

#[test]
fn transfers_of_all_sizes_go_where_they_belong() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, 16 * MIB);
    let block = driver.config().blk_size;
    let block = u32::from(block) as usize;
    // Memory that direct I/O takes as it is, and memory that it does not.
    for (seed, (at, len)) in
        [(0, block), (8 * MIB, 8 * MIB), (4096, 4096), (1, block), (4097, 3 * MIB), (513, 64 << 10)].into_iter().enumerate()
    {
        let offset = seed * 9 * MIB / block * block;
        let wanted = content(seed as u32, len);
        driver.memory.put(at, &wanted);
        assert_eq!(driver.transfer(Write, offset as u64, at, len), 0);
        assert!(site.content(offset as u64, len) == wanted, "written from {at}");
        driver.memory.put(at, &vec![0xee; len]);
        assert_eq!(driver.transfer(Read, offset as u64, at, len), 0);
        assert!(driver.memory.get(at, len) == wanted, "read to {at}");
    }
    assert!(site.content(32 << 10, 4096).iter().all(|byte| *byte == 0), "nothing beside it has changed");
}

#[test]
fn zeroes_and_discards_are_zeroes_afterwards() {
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, MIB);
    let wanted = content(1, MIB);
    driver.write(0, &wanted);
    driver.queues[0].write_zeroes(64 << 10, 64 << 10, false, 1).unwrap();
    driver.queues[0].write_zeroes(256 << 10, 64 << 10, true, 2).unwrap();
    driver.queues[0].discard(512 << 10, 64 << 10, 3).unwrap();
    let mut done = driver.complete(0, 3);
    done.sort_unstable();
    assert_eq!(done, [(1, 0), (2, 0), (3, 0)]);
    let now = site.content(0, MIB);
    for (at, (now, before)) in now.chunks(64 << 10).zip(wanted.chunks(64 << 10)).enumerate() {
        let zeroed = [1, 4, 8].contains(&at);
        assert!(if zeroed { now.iter().all(|byte| *byte == 0) } else { now == before }, "part {at}");
    }
    for op in [RequestOp::WriteZeroes, RequestOp::Discard, RequestOp::Write] {
        assert!(site.metrics.request(op).snapshot().count > 0, "{op:?}");
    }
}

#[test]
fn a_flush_is_counted() {
    let site = Site::serve(1 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), 1, MIB);
    driver.write(0, &content(1, 4096));
    driver.flush();
    assert_eq!(site.metrics.flush.snapshot().count, 1);
}

#[test]
fn requests_beyond_the_end_and_changes_of_a_read_only_disk_fail() {
    let site = Site::serve(1 << 20, Access::ReadOnly);
    let mut driver = Driver::connect(&site.socket(), 1, MIB);
    assert!(driver.features().contains(VirtioBlkFeatureFlags::RO));
    assert_eq!(driver.transfer(Read, (1 << 20) - 4096, 0, 4096), 0);
    assert_ne!(driver.transfer(Read, (1 << 20) - 4096, 0, 8192), 0);
    assert_ne!(driver.transfer(Read, !511, 0, 4096), 0);
    assert_ne!(driver.transfer(Write, 0, 0, 4096), 0);
    driver.queues[0].discard(0, 4096, 0).unwrap();
    assert_ne!(driver.complete(0, 1)[0].1, 0);
    assert_eq!(driver.transfer(Read, 0, 0, 4096), 0, "the queue goes on");
}

#[test]
fn several_queues_write_at_once() {
    const QUEUES: usize = 5;
    const REQUESTS: usize = 24;
    const LEN: usize = 16 << 10;
    let site = Site::serve(64 << 20, Access::ReadWrite);
    let mut driver = Driver::connect(&site.socket(), QUEUES, QUEUES * REQUESTS * LEN);
    for round in 0..8 {
        let all = content(round, QUEUES * REQUESTS * LEN);
        driver.memory.put(0, &all);
        for number in 0..QUEUES * REQUESTS {
            let queue = &mut driver.queues[number % QUEUES];
            driver.memory.queue(queue, Write, (number * LEN) as u64, number * LEN, LEN, number as u32).unwrap();
        }
        (0..QUEUES).for_each(|queue| driver.kick(queue));
        for queue in 0..QUEUES {
            assert!(driver.complete(queue, REQUESTS).iter().all(|(number, ret)| *ret == 0 && *number as usize % QUEUES == queue));
        }
        assert!(site.content(0, all.len()) == all, "round {round}");
    }
    assert_eq!(site.clients(), 1);
}
