// SPDX-License-Identifier: GPL-2.0

//! Process 1 of the virtual machines; see the library.

fn main() {
    luo_guest::init::main();
}
