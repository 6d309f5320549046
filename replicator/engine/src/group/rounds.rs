//! When the members of a group are cut together, and when one may be cut alone.
//!
//! A member that cannot be cut, because it is not connected or has no recovery point yet, keeps the others from nothing: they are cut alone,
//! and there is no newer group point. One that is busy is waited for, but not for ever.

/// For a member that has too much to send, or an epoch under way: from then on the others are cut alone.
const PATIENCE_MS: u64 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// It cannot be cut with the others.
    Away,
    /// It can, but not now.
    Able,
    /// It waits for the others.
    Ready,
    /// It was cut by itself, because another one lags: until that one has come, nobody waits.
    Apart,
}

/// What a member that is ready does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is cut by itself: the group's point must wait for another member.
    Alone,
    /// It waits.
    Wait,
    /// All are ready.
    Together,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Rounds {
    seats: Vec<Seat>,
    /// Since when a cut of all is wanted.
    wanted_since_ms: Option<u64>,
    /// The last cut of all may never be whole at the standby, and requests may wait for one that is.
    owed: bool,
}

impl Rounds {
    /// So many members, of whom none is there.
    pub fn new(members: usize) -> Self {
        Self { seats: vec![Seat::Away; members], wanted_since_ms: None, owed: false }
    }

    /// It cannot be cut with the others.
    pub fn set_away(&mut self, member: usize) {
        self.seats[member] = Seat::Away;
    }

    /// It can be cut with the others, but not now.
    pub fn set_able(&mut self, member: usize) {
        match self.seats[member] {
            Seat::Apart => {}
            Seat::Able | Seat::Ready => self.seats[member] = Seat::Able,
            Seat::Away => {
                self.begin_anew();
                self.seats[member] = Seat::Able;
            }
        }
    }

    /// One that lagged is there: the others have to come once more.
    fn begin_anew(&mut self) {
        self.wanted_since_ms = None;
        self.seats.iter_mut().filter(|seat| **seat == Seat::Apart).for_each(|seat| *seat = Seat::Able);
    }

    /// It is ready to be cut.
    pub fn ask(&mut self, member: usize, now_ms: u64) -> Turn {
        if self.lags(member, now_ms) {
            self.begin_anew();
        }
        self.seats[member] = Seat::Ready;
        self.wanted_since_ms.get_or_insert(now_ms);
        if self.seats.iter().all(|seat| *seat == Seat::Ready) {
            return Turn::Together;
        }
        if (0..self.seats.len()).any(|other| self.lags(other, now_ms)) {
            self.seats[member] = Seat::Apart;
            return Turn::Alone;
        }
        Turn::Wait
    }

    /// Cuts that were made do not count.
    pub fn handle_void(&mut self) {
        self.owed = true;
    }

    /// Whether all had better be cut as soon as they can, whatever their clocks say: what was cut last does not count, and nobody is away.
    pub fn is_cut_owed(&self) -> bool {
        self.owed && !self.seats.contains(&Seat::Away)
    }

    /// All were cut.
    pub fn handle_cut(&mut self) {
        self.wanted_since_ms = None;
        self.owed = false;
        self.seats.fill(Seat::Able);
    }

    /// Whether nobody keeps the others from a cut of all.
    pub fn is_together(&self, now_ms: u64) -> bool {
        (0..self.seats.len()).all(|member| !self.lags(member, now_ms))
    }

    /// Those that could be cut, and have not said that they are ready.
    pub fn awaited(&self) -> impl Iterator<Item = usize> {
        self.seats.iter().enumerate().filter(|(_, seat)| **seat == Seat::Able).map(|(member, _)| member)
    }

    /// Whether the others do not wait for it.
    pub fn lags(&self, member: usize, now_ms: u64) -> bool {
        match self.seats[member] {
            Seat::Away => true,
            Seat::Able => self.wanted_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= PATIENCE_MS),
            Seat::Ready | Seat::Apart => false,
        }
    }
}
