//! Requests through the virtio driver.
