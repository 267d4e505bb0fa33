//! The beginning of the dataflow: closed epochs from the ingest thread.
//!
//! Invariant: the epoch's capability is held until the whole epoch has been given out, and the
//! operator never waits: the ingest thread wakes it.

use crate::upsert::SourcedChange;
use crossbeam_channel::{Receiver, TryRecvError};
use timely::dataflow::operators::generic::operator::source;
use timely::dataflow::{Scope, Stream};
use timely::scheduling::SyncActivator;
use vectide_model::Epoch;

/// A closed epoch.
pub struct ClosedEpoch {
    /// Its number; numbers ascend.
    pub epoch: Epoch,
    /// Its changes in the order they were read.
    pub changes: Vec<SourcedChange>,
}

/// Where a worker's source operator gets its epochs; the other workers have none.
pub struct Feed {
    /// The epochs. The sender's end closing ends the dataflow.
    pub epochs: Receiver<ClosedEpoch>,
    /// Receives what wakes the operator after a send.
    pub wake: crossbeam_channel::Sender<SyncActivator>,
}

/// The stream of all changes.
pub fn ingest<'scope>(
    scope: Scope<'scope, Epoch>,
    first: Epoch,
    feed: Option<Feed>,
) -> Stream<'scope, Epoch, Vec<SourcedChange>> {
    source(scope, "ingest", move |mut capability, info| {
        let mut held = feed.map(|feed| {
            // The ingest thread may have ended already; then there is nothing to wake for.
            let _ = feed
                .wake
                .send(scope.worker().sync_activator_for(info.address.to_vec()));
            capability.downgrade(&first);
            (capability, feed.epochs)
        });
        let again = scope.activator_for(info.address.clone());
        move |output| {
            let Some((capability, epochs)) = held.as_mut() else {
                return;
            };
            match epochs.try_recv() {
                Ok(ClosedEpoch { epoch, changes }) => {
                    capability.downgrade(&epoch);
                    output
                        .session(&*capability)
                        .give_iterator(changes.into_iter());
                    capability.downgrade(&(epoch + 1));
                    again.activate();
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => held = None,
            }
        }
    })
    .container::<Vec<SourcedChange>>()
}
