//! What can go wrong with the database, and what of it passes by itself.
//!
//! Invariant: only errors that are known to pass are tried again; every other one ends the source.

use std::fmt;
use vectide_model::Stopped;

/// An error of a connection or of the server.
#[derive(Debug)]
pub(crate) enum PgError {
    /// The process is ending.
    Stopped,
    /// The connection can't be had or broke.
    Connection(String),
    /// The server said no.
    Server(ServerError),
    /// What was read is not what the protocol says.
    Protocol(String),
    /// The configuration can't work (certificates, methods of authentication).
    Setup(String),
}

/// An error as the server tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// SQLSTATE.
    pub(crate) code: String,
    /// The message, and its detail.
    pub(crate) message: String,
    /// The server's own hint.
    pub(crate) hint: String,
}

impl PgError {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into())
    }

    /// Whether trying again can help: the connection broke, the server starts or ends, or is full, or a
    /// table was locked for too long.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Server(error) => {
                let code = &*error.code;
                code.starts_with("08")
                    || (code.starts_with("53") && code != "53400")
                    || matches!(code, "57P01" | "57P02" | "57P03" | "55006" | "55P03")
            }
            _ => false,
        }
    }

    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Server(error) => &error.code,
            _ => "",
        }
    }
}

impl fmt::Display for PgError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => formatter.write_str("the pipeline is stopping"),
            Self::Connection(what) | Self::Protocol(what) | Self::Setup(what) => {
                formatter.write_str(what)
            }
            Self::Server(error) => {
                write!(formatter, "{} (SQLSTATE {})", error.message, error.code)
            }
        }
    }
}

/// Why the source ends before its end.
#[derive(Debug)]
pub(crate) enum End {
    /// The process is ending.
    Stopped,
    /// The database can't be reached for now.
    Broken(PgError),
    /// The recorded position is not there any more.
    PositionLost(String),
    /// A fault, and what can be done.
    Failed {
        /// What happened.
        detail: String,
        /// What can be done.
        hint: String,
    },
}

impl End {
    /// What happened and what can be done, for a person.
    pub(crate) fn fact_and_hint(self) -> (String, String) {
        match self {
            Self::Failed { detail, hint } => (detail, hint),
            Self::Broken(error) => match Self::of(&error) {
                Self::Failed { detail, hint } => (detail, hint),
                _ => (error.to_string(), String::new()),
            },
            Self::PositionLost(detail) => (detail, "read the source anew".to_owned()),
            Self::Stopped => ("the pipeline is stopping".to_owned(), String::new()),
        }
    }

    pub(crate) fn renamed(table: &str, now: &str) -> Self {
        Self::failed(
            format!("table `{table}` is named `{now}` now"),
            "name it so under `tables`, and read the source anew: vectide run CONFIG --resnapshot \
             SOURCE",
        )
    }

    pub(crate) fn failed(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed {
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}

impl From<Stopped> for End {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<PgError> for End {
    fn from(error: PgError) -> Self {
        if error.is_passing() {
            return Self::Broken(error);
        }
        Self::of(&error)
    }
}

impl End {
    /// The error as the end of the source, also if it might have passed.
    pub(crate) fn of(error: &PgError) -> Self {
        let hint = match error {
            PgError::Stopped => return Self::Stopped,
            PgError::Connection(_) => "check host, port and that the server accepts connections",
            PgError::Setup(_) => "see `tls:` and the server's pg_hba.conf",
            PgError::Protocol(_) => "check that host and port are those of a PostgreSQL server",
            PgError::Server(server) => match &*server.code {
                "28P01" | "28000" => "check user, password and the server's pg_hba.conf",
                "3D000" => "check `database`",
                "42501" => {
                    "grant it: ALTER ROLE name REPLICATION; GRANT USAGE ON SCHEMA, SELECT ON tables"
                }
                "55P03" => "a statement that alters the table runs or waits; let it end first",
                "53400" => "raise max_replication_slots (or drop a slot that nobody uses)",
                _ if !server.hint.is_empty() => &server.hint,
                "55006" => "another pipeline or an earlier run reads the slot; end it first",
                _ => "see the server's log",
            },
        };
        Self::failed(error.to_string(), hint)
    }
}
