//! The connection for tests and benchmarks: statements, and a reader of the stream that throws
//! everything away.
//!
//! Invariant: nothing here is used by the source.

pub(crate) use super::connection::{Connection, Connector, Purpose};

use super::catalog::parse_lsn;
use super::connection::Frame;
use super::errors::PgError;
use super::pgoutput::{Lsn, Replication, replication};
use postgres_protocol::message::backend::Message;

/// Reads a slot's stream until the walsender has got past `end`; gives messages and bytes.
pub(crate) fn drain(
    mut connection: Connection,
    slot: &str,
    publication: &str,
    end: &str,
) -> Result<(u64, u64), PgError> {
    let end: Lsn = parse_lsn(end).unwrap_or(0);
    connection.start_copy_both(&format!(
        "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names '\"{publication}\"')"
    ))?;
    let (mut messages, mut bytes) = (0, 0);
    loop {
        let before = messages;
        while let Some(frame) = connection.buffered_frame()? {
            let Frame::Message(Message::CopyData(body)) = frame else {
                continue;
            };
            let malformed =
                |error: super::pgoutput::Malformed| PgError::protocol(error.to_string());
            match replication(body.data()).map_err(malformed)? {
                Replication::Data { message, .. } => {
                    messages += 1;
                    bytes += message.len() as u64;
                }
                Replication::Keepalive { end: at, .. } if at >= end => {
                    connection.close();
                    return Ok((messages, bytes));
                }
                Replication::Keepalive { .. } => {}
            }
        }
        // Asking while messages come would slow the server down.
        if messages == before {
            connection.send_status(0, true)?;
        }
        connection.fill(None)?;
    }
}
