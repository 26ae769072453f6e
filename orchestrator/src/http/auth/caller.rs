//! Callers and their permissions:
//!
//! | role | reads | starts, pauses, resumes, aborts | approves, rejects, promotes | deletes |
//! |---|---|---|---|---|
//! | viewer | yes | | | |
//! | operator | yes | yes | | |
//! | approver | yes | | yes | |
//! | admin | yes | yes | yes | yes |

use axum::http::StatusCode;

use crate::http::problem::Problem;

/// The role of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Starts, pauses, resumes, aborts.
    Operator,
    /// Decides on gates.
    Approver,
    /// Does everything.
    Admin,
}

/// The right required by a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Operate,
    /// To reduce sends.
    Stop,
    Decide,
    Delete,
}

/// A right as a type, so that a handler's signature shows the required right.
pub(crate) trait RequiredRight: Send + Sync {
    const RIGHT: Right;
}

macro_rules! required_rights {
    ($($right:ident),*) => {$(
        pub(crate) struct $right;
        impl RequiredRight for $right {
            const RIGHT: Right = Right::$right;
        }
    )*};
}

required_rights!(Read, Operate, Stop, Decide, Delete);

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Approver, Self::Admin];

    /// Returns the role's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// Returns the role with the rights of both roles.
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
            Right::Read => true,
            Right::Operate | Right::Stop => matches!(self, Self::Operator | Self::Admin),
            Right::Decide => matches!(self, Self::Approver | Self::Admin),
            Right::Delete => matches!(self, Self::Admin),
        }
    }
}

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: String,
    role: Role,
}

impl Caller {
    /// Creates a caller.
    #[must_use]
    pub fn new(name: String, role: Role) -> Self {
        Self { name, role }
    }

    /// Returns the name under which operations are recorded.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the caller's role.
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
            "{} has the role {}; the request requires the role {}",
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
    fn combined_roles_have_the_rights_of_both() {
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
