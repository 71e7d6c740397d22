//! Fires chords whose header has ended: sends the body, or fails it.

use crate::app::Celeriac;
use crate::canvas;
use crate::id::GroupId;
use crate::store::{Outcome, Transaction};

/// Fires `ready`, and whatever that completes in turn. What cannot be fired now is found by the restorer later.
pub(crate) async fn fire_chords(app: &Celeriac, ready: Vec<GroupId>) {
    let mut open = ready;
    while let Some(group_id) = open.pop() {
        match fire(app, &group_id).await {
            Ok(next) => open.extend(next),
            Err(error) => {
                tracing::warn!(%group_id, %error, "chord cannot be fired now, the restorer will try again");
            }
        }
    }
}

async fn fire(app: &Celeriac, group_id: &GroupId) -> crate::store::Result<Vec<GroupId>> {
    let store = app.store();
    let Some(chord) = store.backend.chord(group_id).await? else { return Ok(Vec::new()) };
    let transaction = canvas::fire(&chord, &app.planner()).unwrap_or_else(|error| {
        // A body that cannot be sent would be tried for ever: the chord ends here, for all to see in the log.
        tracing::error!(%group_id, %error, "the body of a chord cannot be sent, the chord is dropped");
        let mut transaction = Transaction::default();
        transaction.record.fire = Some(group_id.clone());
        transaction
    });
    match store.transact.commit(vec![transaction]).await?.pop() {
        Some(Outcome::Committed { ready, .. }) => Ok(ready),
        _ => Ok(Vec::new()),
    }
}
