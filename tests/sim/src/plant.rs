//! Bugs that are put in on purpose, to see that the rules notice them.
//!
//! Each stands at the seam where its effect would leave the product's code: at the disk, in the catalogue, in a frame, between the engine
//! and its shell. The product knows nothing of it.

/// A bug, named by what the code would do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The standby answers a commit before it is durable.
    AcknowledgeBeforeCommit,
    /// An extent leaves the activity log before the local flush.
    CoolBeforeFlush,
    /// What is folded reaches the image in another order.
    FoldOutOfOrder,
    /// Extents are never recorded as hot.
    SkipActivityLog,
    /// One changed block is forgotten at a cut.
    ForgetDirtyBit,
    /// A standby takes a primary that another one has overtaken.
    AcceptOldGeneration,
    /// An epoch is published whatever its digest.
    PublishUnchecked,
    /// A journal that was torn loses its last intact record, too.
    LoseTornTail,
    /// A guest is told of a flush, or a write, before the standby has it.
    AcknowledgeBeforeArrival,
    /// What holds stays recorded when less is promised.
    KeepPromise,
    /// What an image's blocks are known by is not made durable with them.
    ForgetDigests,
    /// One changed block is forgotten in the lanes of other standbys at a cut.
    ForgetInOtherLane,
    /// Who is promoted after another one was has forgotten what its epochs changed.
    ForgetHistory,
    /// A copy that a second primary takes over in the middle of a resync passes for one that no other primary wrote to.
    KeepBase,
    /// Blocks that a copy was asked about, and had, are missing from what it knows of its epochs.
    ForgetFoundEqual,
    /// Another standby gets an epoch that comes after the last one of the standby that takes over.
    CutAfterLast,
    /// What was sent on a stream that broke passes for known on the next one.
    KeepSentContent,
}
