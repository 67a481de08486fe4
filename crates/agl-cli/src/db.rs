use agl_store::maintenance::{self, Migrated};

use crate::args::DbCommand;
use crate::console;
use crate::error::Error;

/// Looks after a database.
pub(crate) fn run(command: &DbCommand) -> Result<(), Error> {
    match command {
        DbCommand::Check(db) => {
            let problems = maintenance::check(&db.file)?;
            if problems.is_empty() {
                return console::say(format_args!("{} is in order", db.file.display()));
            }
            for problem in &problems {
                console::say(problem)?;
            }
            Err(Error::Broken { path: db.file.clone(), count: problems.len() })
        }
        DbCommand::Backup { db, to } => {
            let bytes = maintenance::backup(&db.file, to)?;
            console::say(format_args!("{} was copied to {} ({bytes} bytes)", db.file.display(), to.display()))
        }
        DbCommand::Vacuum(db) => {
            let (before, after) = maintenance::vacuum(&db.file)?;
            console::say(format_args!("{} had {before} bytes and has {after}", db.file.display()))
        }
        DbCommand::Migrate(db) => {
            let Migrated { from, to } = maintenance::migrate(&db.file)?;
            let file = db.file.display();
            if from == to {
                console::say(format_args!("{file} has schema version {to} already, the newest"))
            } else {
                console::say(format_args!("{file} had schema version {from} and has {to}"))
            }
        }
    }
}
