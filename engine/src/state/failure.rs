//! What a failure of the store means to a person, and the way out.

use std::error::Error;
use std::io;

/// What to do about something that is not what was committed.
pub(super) const DAMAGED_HINT: &str = "restore the state from a backup (vectide restore), or move its \
     folder away so that it is built again from the sources";

/// A failure of the store, in words.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    let (mut cause, mut found) = (Some(error), None);
    while let Some(at) = cause {
        found = found.or_else(|| at.downcast_ref::<io::Error>());
        cause = at.source();
    }
    match found {
        Some(cause) if cause.kind() == io::ErrorKind::StorageFull => {
            "no room is left on the state's disk\nhint: make room and start again: what was \
             committed is intact"
                .into()
        }
        Some(cause) => format!(
            "{cause}\nhint: check the permissions and the health of the state's disk, then start \
             again: what was committed is intact"
        ),
        None => format!("{error}\nhint: {DAMAGED_HINT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_with_the_way_out() {
        let full = fjall::Error::from(io::Error::from(io::ErrorKind::StorageFull));
        let told = explain(&full);
        assert!(told.starts_with("no room is left") && told.contains("hint: make room"));
        let denied = io::Error::new(io::ErrorKind::PermissionDenied, "not for you");
        assert!(explain(&fjall::Error::from(denied)).starts_with("not for you\nhint: check"));
        assert!(explain(&fjall::Error::Unrecoverable).contains("vectide restore"));
    }
}
