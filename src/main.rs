//! Parses the command line and hands over.

use std::process::ExitCode;

use clap::Parser as _;
use tollgate::commands;
use tollgate::config::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(settings) => commands::serve(settings),
        Command::Config(settings) => commands::config(settings),
        Command::Keys(command) => commands::keys(command),
        Command::CheckCatalog { file } => commands::check_catalog(&file),
        Command::Schema => commands::schema(),
        Command::Verify(settings) => commands::verify(settings),
        Command::Health(settings) => commands::health(&settings),
    }
}
