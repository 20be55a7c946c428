// SPDX-License-Identifier: GPL-2.0

//! Tells the program which machine it was built for, since it builds the guest's for the same.

fn main() {
    if let Ok(target) = std::env::var("TARGET") {
        println!("cargo::rustc-env=LUO_TARGET={target}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
