//! Metadata contexts: what a client can have told about a range, besides its content.

/// A metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: what is a hole, and reads as zeroes.
    Allocation,
    /// `tern:dirty`: what is not at the standby yet.
    Dirty,
}

/// A set of metadata contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Context {
    /// All that there are.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Dirty];

    /// Its name: namespace, colon, leaf.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Dirty => "tern:dirty",
        }
    }

    /// The number by which replies refer to it.
    pub fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Dirty => 2,
        }
    }

    /// Whether a client that lists contexts by `query` means it: by its name, or by its namespace and nothing after the colon.
    pub(super) fn is_listed_by(self, query: &[u8]) -> bool {
        let name = self.name().as_bytes();
        query == name || (query.ends_with(b":") && name.starts_with(query))
    }
}

impl Contexts {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Those of the set, in the order of their ids.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.0 & context.bit() != 0)
    }
}

impl Context {
    fn bit(self) -> u8 {
        1 << self.id()
    }
}

impl FromIterator<Context> for Contexts {
    fn from_iter<I: IntoIterator<Item = Context>>(contexts: I) -> Self {
        Self(contexts.into_iter().fold(0, |bits, context| bits | context.bit()))
    }
}
