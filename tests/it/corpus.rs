//! Whole folders of images against what other tools read in them: testimages/, and the corpus of
//! other people's images where IMGFS_CORPUS says that it is.

use std::path::Path;

use crate::fat::tool;
use crate::program::{imgfs, project};

fn compare(folder: &Path) {
    let script = project().join("scripts/corpus");
    let program = imgfs().get_program().to_owned();
    let args = [script.to_str().unwrap(), folder.to_str().unwrap(), "--imgfs", program.to_str().unwrap()];
    println!("{}", tool("python3", "python3", &args));
}

#[test]
fn our_own_images_read_as_other_tools_read_them() {
    compare(&project().join("testimages"));
}

#[test]
fn the_images_of_others_read_as_other_tools_read_them() {
    match std::env::var_os("IMGFS_CORPUS") {
        Some(folder) => compare(Path::new(&folder)),
        None => println!("NOT CHECKED: IMGFS_CORPUS names no folder of images with truths"),
    }
}
