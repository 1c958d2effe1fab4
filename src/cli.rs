//! The commands. Each file is one of them; what they share stands in `options`, `target`, `walk`.

mod cat;
mod commit;
mod cp;
mod create;
mod diff;
mod document;
mod edit;
mod generate;
mod hash;
mod hashing;
mod helper;
mod info;
mod interrupt;
mod keeper;
mod key;
mod learner;
mod list;
mod ls;
mod manifest;
mod mount;
mod open;
mod options;
mod overlay;
mod parallel;
mod patch;
mod progress;
mod provenance;
mod runtime;
mod sandbox;
mod sums;
mod target;
mod tree;
mod treeless;
mod umount;
mod verify;
mod walk;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const EXAMPLES: &str = "\
Examples:
  imgfs disk.img mnt           mount: mnt/disk.img are the bytes, mnt/files/ the files
  imgfs ls disk.img:/files     look inside without mounting
  imgfs cp -a disk.img:/files out";

/// Mount any disk image without root and without touching it: flat and as a tree.
#[derive(Parser)]
#[command(name = "imgfs", version, before_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount an image (`imgfs IMAGE MOUNTPOINT` is the same)
    Mount(mount::Args),
    /// Mount in the user's runtime folder, and show that in the file manager
    Open(open::Args),
    /// Unmount, and return when the daemon is gone
    #[command(alias = "unmount")]
    Umount(umount::Args),
    /// List what is mounted, by whom, and where changes go
    List(list::Args),
    /// Say what an image is, and how that is known
    Info(info::Args),
    /// List directories
    Ls(ls::Args),
    /// Write files to standard output
    Cat(cat::Args),
    /// List a tree as a tree
    Tree(tree::Args),
    /// Extract files with times, modes, links and extended attributes; or put files into an image
    Cp(cp::Args),
    /// Make directories in an image
    Mkdir(edit::MkdirArgs),
    /// Remove files from an image
    Rm(edit::RmArgs),
    /// Rename within an image
    Mv(edit::MvArgs),
    /// Make a blank formatted image
    Create(create::Args),
    /// Describe or check an overlay
    Overlay(overlay::Args),
    /// Say what an overlay changes
    Diff(diff::Args),
    /// Write base and overlay as a new image, or the changes into the base
    Commit(commit::Args),
    /// Throw the changes of an overlay away
    Discard(commit::DiscardArgs),
    /// Write the changes of an overlay as a patch
    Export(patch::ExportArgs),
    /// Apply a patch
    Apply(patch::ApplyArgs),
    /// Write the man pages
    Manual(generate::ManualArgs),
    /// Write the completions of a shell
    Completions(generate::CompletionsArgs),
    /// One row a node, in the form that other tools read
    Manifest(manifest::Args),
    /// Started by `mount`
    #[command(name = keeper::NAME, hide = true)]
    Keeper(keeper::Args),
    /// Digests of an image, of the disk in it, of its parts and files
    Hash(hash::Args),
    /// Compare an image with the digests beside it and with all checksums in it
    Verify(verify::Args),
}

/// What a command achieved when it did not fail as a whole.
enum Outcome {
    /// Everything.
    Complete,
    /// The rest: what could not be read was said on standard error.
    Partial,
    /// `verify`: nothing to verify against, or something could not be read.
    Unverified,
}

/// Runs the command line; errors go to standard error as one chain of causes.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    allow_many_files();
    // Where it cannot be, such a limit ends the program, as it ends every other.
    let _ = survive_large_files();
    let words: Vec<OsString> = args.collect();
    if helper::is_called(words.first().map(OsString::as_os_str)) {
        return helper::run(words.get(1..).unwrap_or_default());
    }
    let given = words.len();
    let words = with_mount(words);
    // What was taken for an image.
    let image = words.get(2).filter(|_| words.len() > given);
    if let Some(problem) = image.and_then(|word| misspelt(word)) {
        eprintln!("imgfs: {problem}");
        return ExitCode::from(2);
    }
    let cli = Cli::parse_from(words);
    let result = match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Open(args) => open::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::List(args) => list::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Tree(args) => tree::run(&args),
        Command::Cp(args) => cp::run(&args),
        Command::Mkdir(args) => edit::mkdir(&args),
        Command::Rm(args) => edit::rm(&args),
        Command::Mv(args) => edit::mv(&args),
        Command::Create(args) => create::run(&args),
        Command::Overlay(args) => overlay::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Commit(args) => commit::run(&args),
        Command::Discard(args) => commit::discard(&args),
        Command::Export(args) => patch::export(&args),
        Command::Apply(args) => patch::apply(&args),
        Command::Manual(args) => generate::manual(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Manifest(args) => manifest::run(&args),
        Command::Keeper(args) => keeper::run(&args),
        Command::Hash(args) => hash::run(&args),
        Command::Verify(args) => verify::run(&args),
    };
    match result {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Partial) => ExitCode::from(1),
        Ok(Outcome::Unverified) => ExitCode::from(2),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            interrupt::end();
            eprintln!("imgfs: {}", complaint(&error));
            ExitCode::from(1)
        }
    }
}

/// An image in pieces takes an open file for each: as many as the system lets this process have.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused there are fewer.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// A limit on the size of files (`ulimit -f`) refuses a write, as a full disk does, and does not end the
/// process, which may be the daemon of a mount.
fn survive_large_files() -> std::io::Result<()> {
    let noticed = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, noticed).map(drop)
}

/// What is wrong with a first word that looks like a command, of which there is none, and is no file either.
fn misspelt(word: &OsStr) -> Option<String> {
    let word = word.to_str().filter(|word| word.bytes().all(|byte| byte.is_ascii_alphabetic()))?;
    if std::path::Path::new(word).symlink_metadata().is_ok() {
        return None;
    }
    let command = Cli::command();
    let names = command.get_subcommands().filter(|known| !known.is_hide_set()).map(clap::Command::get_name);
    let near = names.map(|name| (strsim::damerau_levenshtein(name, word), name)).min();
    let advice = match near.filter(|(distance, name)| *distance <= 2 && *distance < name.len()) {
        Some((_, name)) => format!("did you mean `imgfs {name}`?"),
        None => "`imgfs --help` lists the commands".to_owned(),
    };
    Some(format!("{word}: no image is there, and no command is called so; {advice}"))
}

fn is_command(word: &OsStr) -> bool {
    let command = Cli::command();
    let named = |known: &clap::Command| {
        std::iter::once(known.get_name()).chain(known.get_all_aliases()).any(|name| word == OsStr::new(name))
    };
    word == "help" || command.get_subcommands().any(named)
}

/// `imgfs IMAGE MOUNTPOINT` is `imgfs mount IMAGE MOUNTPOINT`: a first word that names no command
/// is an image.
fn with_mount(mut args: Vec<OsString>) -> Vec<OsString> {
    let first = args.get(1).map(OsString::as_os_str);
    let own_flag = |word: &OsStr| ["-h", "--help", "-V", "--version"].iter().any(|flag| word == OsStr::new(flag));
    if first.is_some_and(|word| !is_command(word) && !own_flag(word)) {
        args.insert(1, "mount".into());
    }
    args
}

/// The chain of causes in one line. A cause that the line ends with already is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let said = error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => line,
        said => format!("{said}: {cause}"),
    });
    imgfs::text::tamed(&said)
}

/// The same, and what to do next where that is the same for every command.
fn complaint(error: &anyhow::Error) -> String {
    let said = sentence(error);
    let advice = advice(&said);
    // What a process says that this one started has it already.
    if said.ends_with(advice) { said } else { said + advice }
}

/// What to do about an overlay and a base that do not belong together.
fn advice(said: &str) -> &'static str {
    if said.contains("; --force-base takes it all the same") {
        // The library says as much.
        ", `imgfs discard --force-base` drops the changes, --overlay FILE starts others"
    } else if said.contains("is not this overlay's base") || said.contains("changed since the overlay was made") {
        "; --force-base takes it all the same, `imgfs discard --force-base` drops the changes, --overlay FILE starts \
         others"
    } else if said.contains("the base that an interrupted commit was writing to") {
        "; `imgfs commit --in-place --base IMAGE` finishes the commit into that one"
    } else if said.contains("a file that is not a qcow2 image") {
        "; name another file, or one that is not there yet"
    } else {
        ""
    }
}

/// The reader of our output went away: not an error of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_word_that_is_no_command_is_an_image() {
        let words = |line: &str| with_mount(line.split(' ').map(OsString::from).collect()).join(OsStr::new(" "));
        assert_eq!(words("imgfs a.img mnt"), "imgfs mount a.img mnt");
        assert_eq!(words("imgfs -f a.img mnt"), "imgfs mount -f a.img mnt");
        assert_eq!(words("imgfs ls a.img"), "imgfs ls a.img");
        assert_eq!(words("imgfs --help"), "imgfs --help");
        Cli::command().debug_assert();
    }
}
