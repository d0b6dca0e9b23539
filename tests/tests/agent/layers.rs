//! What the device crate may not depend on.

use std::process::Command;

/// The runtime must build for a board without the training framework, our own training code or a second engine.
#[test]
fn nothing_of_training_reaches_the_device() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", "sa-device", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(sa_tests::root())
        .output()
        .expect("cargo runs, it has started this test");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"sa-device") && names.contains(&"tract-onnx"), "the tree was not read: {tree}");
    let heavy = |name: &str| {
        name.starts_with("burn") || name.starts_with("cubecl") || ["sa-models", "sa-export", "ort", "ort-sys", "mimalloc"].contains(&name)
    };
    let found: Vec<&&str> = names.iter().filter(|name| heavy(name)).collect();
    assert!(found.is_empty(), "sa-device depends on {found:?}");
}
