//! Who asks, and what they may do:
//!
//! | role | looks | starts, pauses, resumes, aborts | approves, rejects, promotes | deletes |
//! |---|---|---|---|---|
//! | viewer | yes | | | |
//! | operator | yes | yes | | |
//! | approver | yes | | yes | |
//! | admin | yes | yes | yes | yes |

use axum::http::StatusCode;

use crate::http::problem::Problem;

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Starts, pauses, resumes, aborts.
    Operator,
    /// Decides on gates.
    Approver,
    /// All of it.
    Admin,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Look,
    Operate,
    /// To operate so that less is sent.
    Stop,
    Decide,
    Delete,
}

/// A right as a type: what a handler needs stands in its signature.
pub(crate) trait Needed: Send + Sync {
    const RIGHT: Right;
}

macro_rules! needed {
    ($($right:ident),*) => {$(
        pub(crate) struct $right;
        impl Needed for $right {
            const RIGHT: Right = Right::$right;
        }
    )*};
}

needed!(Look, Operate, Stop, Decide, Delete);

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Approver, Self::Admin];

    /// The role as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// What both come to together.
    pub(super) fn and(self, other: Self) -> Self {
        let either = |right| self.has(right) || other.has(right);
        match (either(Right::Operate), either(Right::Decide)) {
            (true, true) => Self::Admin,
            (true, false) => Self::Operator,
            (false, true) => Self::Approver,
            (false, false) => Self::Viewer,
        }
    }

    fn has(self, right: Right) -> bool {
        match right {
            Right::Look => true,
            Right::Operate | Right::Stop => matches!(self, Self::Operator | Self::Admin),
            Right::Decide => matches!(self, Self::Approver | Self::Admin),
            Right::Delete => matches!(self, Self::Admin),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: String,
    role: Role,
}

impl Caller {
    /// Somebody whose name and role are known.
    #[must_use]
    pub fn new(name: String, role: Role) -> Self {
        Self { name, role }
    }

    /// The name that operations are recorded under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What they may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn may(&self, right: Right) -> Result<(), Problem> {
        if self.role.has(right) {
            return Ok(());
        }
        let can = Role::ALL.into_iter().filter(|role| role.has(right));
        let can: Vec<_> = can.map(Role::as_str).collect();
        let detail = format!(
            "{} has the role {}; this needs {}",
            self.name,
            self.role.as_str(),
            can.join(" or ")
        );
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_to_what_they_allow() {
        use Role::{Admin, Approver, Operator, Viewer};
        let table = [
            (Viewer, Viewer, Viewer),
            (Viewer, Operator, Operator),
            (Viewer, Approver, Approver),
            (Operator, Operator, Operator),
            (Operator, Approver, Admin),
            (Viewer, Admin, Admin),
        ];
        for (one, other, both) in table {
            assert_eq!((one.and(other), other.and(one)), (both, both));
        }
    }
}
