//! How the command fails: a message for the person and an exit status for the script.

/// A failure of the command.
#[derive(Debug)]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// What to print on standard error.
    pub message: String,
}

/// Exit status of a bad configuration (`EX_CONFIG` of sysexits.h).
pub const BAD_CONFIG: u8 = 78;

/// Exit status when something in the outside world is not there (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;

impl Failure {
    /// A failure with the exit status 1.
    pub fn new(message: impl ToString) -> Self {
        Self {
            status: 1,
            message: message.to_string(),
        }
    }

    /// A bad configuration.
    pub fn config(report: &vectide_config::Report) -> Self {
        Self {
            status: BAD_CONFIG,
            message: report.to_string(),
        }
    }

    /// Prints the message and gives the exit status.
    fn report(&self) -> u8 {
        let message = self.message.trim_end();
        let prefix = if self.status == BAD_CONFIG {
            ""
        } else {
            "error: "
        };
        eprintln!("{prefix}{message}");
        self.status
    }
}

/// Ends the process as its command ended, whatever is still being built.
pub fn end(result: Result<(), Failure>) -> ! {
    let status = match result {
        Ok(()) => 0,
        Err(failure) => failure.report(),
    };
    vectide_faiss::end_process(status)
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}
