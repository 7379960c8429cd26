//! What `medfuse fuse` writes.

use medfuse::imaging::{Channels, Image, Samples, ycrcb_from_rgb};

use super::{Lab, command, ran};

/// The pixels of an 8-bit image.
fn bytes_of(image: &Image) -> &[u8] {
    match image.samples() {
        Samples::U8(v) => v,
        Samples::U16(_) => panic!("the image has 16 bits"),
    }
}

#[test]
fn a_pair_gives_the_same_bytes_alone_in_a_folder_and_on_any_number_of_threads() {
    let lab = Lab::heads(2, 64, "ct");
    for (threads, out) in [("1", "one"), ("2", "two")] {
        let paths = ["MRI", "CT", out].map(|name| lab.text(name));
        let args = ["fuse", &paths[0], &paths[1], "-o", &paths[2], "--device", "cpu"];
        let said = ran(command(&args).env("RAYON_NUM_THREADS", threads)).ok();
        assert!(said.stderr.contains("2 of 2 pairs fused"), "{}", said.stderr);
    }
    assert_eq!(lab.names("one"), ["phantom_0000.png", "phantom_0001.png"]);
    for name in lab.names("one") {
        assert_eq!(lab.bytes(&format!("one/{name}")), lab.bytes(&format!("two/{name}")));
    }
    let [mri, ct] = ["MRI", "CT"].map(|folder| format!("{folder}/phantom_0001.png"));
    lab.fuse_on_cpu(&mri, &ct, "alone.png").ok();
    assert_eq!(lab.bytes("alone.png"), lab.bytes("one/phantom_0001.png"));
    let seed = ["--device", "cpu", "--seed", "1"];
    lab.fuse(&mri, &ct, "seed.png", &seed).ok();
    assert_ne!(lab.bytes("alone.png"), lab.bytes("seed.png"));
}

#[test]
fn the_gpu_gives_the_same_bytes_twice_and_the_cpus_picture() {
    let lab = Lab::heads(1, 64, "ct");
    let (mri, ct) = ("MRI/phantom_0000.png", "CT/phantom_0000.png");
    let seeds = [("first.png", "7"), ("second.png", "7"), ("other.png", "8")];
    for (out, seed) in seeds {
        lab.fuse(mri, ct, out, &["--device", "gpu", "--seed", seed]).ok();
    }
    assert_eq!(lab.bytes("first.png"), lab.bytes("second.png"));
    assert_ne!(lab.bytes("first.png"), lab.bytes("other.png"));
    lab.fuse(mri, ct, "cpu.png", &["--device", "cpu", "--seed", "7"]).ok();
    let (gpu, cpu) = (lab.image("first.png"), lab.image("cpu.png"));
    let apart = bytes_of(&gpu).iter().zip(bytes_of(&cpu));
    let worst = apart.map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(1), "{worst:?} grey levels apart");
}

/// The top left `width` x `height` of an 8-bit image.
fn cropped(image: &Image, width: usize, height: usize) -> Image {
    let count = image.channels().count();
    let rows = bytes_of(image).chunks_exact(image.width() * count).take(height);
    let pixels = rows.flat_map(|row| &row[..width * count]).copied().collect();
    Image::new(width, height, image.channels(), Samples::U8(pixels)).expect("a crop")
}

#[test]
fn odd_sizes_keep_their_size_and_colour_keeps_its_chroma() {
    let lab = Lab::heads(1, 91, "pet");
    for folder in ["MRI", "PET"] {
        let name = format!("{folder}/phantom_0000.png");
        lab.save(&name, &cropped(&lab.image(&name), 65, 91));
    }
    lab.fuse_on_cpu("MRI", "PET", "out").ok();
    let (pet, fused) = (lab.image("PET/phantom_0000.png"), lab.image("out/phantom_0000.png"));
    assert_eq!((fused.width(), fused.height(), fused.channels()), (65, 91, Channels::Rgb));
    let pixels = bytes_of(&pet).chunks_exact(3).zip(bytes_of(&fused).chunks_exact(3));
    let (mut compared, mut brighter) = (0, 0);
    for (before, after) in pixels {
        let rgb = |p: &[u8]| ycrcb_from_rgb([p[0], p[1], p[2]]);
        let ([y, cr, cb], [fused_y, fused_cr, fused_cb]) = (rgb(before), rgb(after));
        // Where a channel is at its end the colour was clipped.
        if after.iter().all(|v| (1..255).contains(v)) {
            let apart = cr.abs_diff(fused_cr).max(cb.abs_diff(fused_cb));
            assert!(apart <= 2, "{before:?} became {after:?}");
            compared += 1;
        }
        brighter += usize::from(fused_y.abs_diff(y) > 8);
    }
    assert!(compared > 500, "only {compared} pixels were compared");
    assert!(brighter > 500, "the MRI changed only {brighter} pixels");
}

#[test]
fn sixteen_bits_in_give_sixteen_out_and_the_others_name_tells_the_format() {
    let lab = Lab::heads(1, 64, "ct");
    for (from, to) in [("MRI", "deep_mri"), ("CT", "deep_ct")] {
        let shallow = lab.image(&format!("{from}/phantom_0000.png"));
        let noise = |(i, v): (usize, &u8)| u16::from(*v) * 256 + (i * 37 % 256) as u16;
        let samples = bytes_of(&shallow).iter().enumerate().map(noise).collect();
        let deep = Image::new(64, 64, Channels::Grey, Samples::U16(samples)).expect("a picture");
        lab.save(&format!("{to}/a.png"), &deep);
        lab.save(&format!("{to}/b.tif"), &deep);
    }
    lab.save("deep_ct/c.jpg", &lab.image("CT/phantom_0000.png"));
    lab.save("deep_mri/c.png", &lab.image("MRI/phantom_0000.png"));
    lab.fuse_on_cpu("deep_mri", "deep_ct", "out").ok();
    assert_eq!(lab.names("out"), ["a.png", "b.tif", "c.jpg"]);
    let (png, tiff) = (lab.image("out/a.png"), lab.image("out/b.tif"));
    assert_eq!(png, tiff);
    let Samples::U16(samples) = png.samples() else {
        panic!("the result has 8 bits");
    };
    let between = samples.iter().filter(|v| **v % 257 != 0).count();
    assert!(between > samples.len() / 2, "8 bits in a 16-bit file");
    assert!(lab.bytes("out/c.jpg").starts_with(&[0xff, 0xd8, 0xff]), "not a JPEG");
    assert_eq!(lab.image("out/c.jpg").channels(), Channels::Grey);
}

#[test]
fn steps_of_a_wrong_count_or_off_the_schedule_are_refused() {
    let lab = Lab::heads(1, 64, "ct");
    let steps = |list: &str| lab.fuse("MRI", "CT", "out", &["--device", "cpu", "--steps", list]);
    steps("5,10").fails_with(&["5, 10", "3 steps"]);
    steps("5,10,2001").fails_with(&["2001", "1 to 2000"]);
    steps("0,5,10").fails_with(&["1 to 2000"]);
    steps("5,5,10").fails_with(&["twice"]);
    assert!(!lab.path("out").exists() || lab.names("out").is_empty());
    let [mri, ct] = ["MRI", "CT"].map(|folder| format!("{folder}/phantom_0000.png"));
    lab.fuse_on_cpu(&mri, &ct, "default.png").ok();
    lab.fuse(&mri, &ct, "steps.png", &["--device", "cpu", "--steps", "50,100,200"]).ok();
    assert_ne!(lab.bytes("default.png"), lab.bytes("steps.png"));
}

#[test]
fn a_result_never_replaces_its_own_input() {
    let lab = Lab::heads(1, 64, "ct");
    let before = lab.bytes("CT/phantom_0000.png");
    lab.fuse_on_cpu("MRI", "CT", "CT").fails_with(&["CT", "input"]);
    lab.fuse_on_cpu("MRI", "CT", "MRI/../CT").fails_with(&["input"]);
    let (mri, ct) = ("MRI/phantom_0000.png", "CT/phantom_0000.png");
    lab.fuse_on_cpu(mri, ct, ct).fails_with(&["input"]);
    assert_eq!(lab.bytes(ct), before);
}

#[test]
fn shards_share_the_sorted_pairs_without_overlap() {
    let lab = Lab::heads(5, 64, "ct");
    std::fs::remove_file(lab.path("CT/phantom_0004.png")).expect("the file goes");
    let shard = |shard: &str, out: &str| lab.fuse("MRI", "CT", out, &["--device", "cpu", "--shard", shard]);
    // The pair without partner is told by one job alone, whose exit code it is.
    shard("1/3", "one").fails_with(&["2 of 3 pairs fused", "phantom_0004"]);
    shard("2/3", "two").ok();
    shard("3/3", "three").ok();
    assert_eq!(lab.names("one"), ["phantom_0000.png", "phantom_0003.png"]);
    assert_eq!(lab.names("two"), ["phantom_0001.png"]);
    assert_eq!(lab.names("three"), ["phantom_0002.png"]);
    for wrong in ["0/3", "4/3", "1", "1/0", "a/b"] {
        let said = shard(wrong, "wrong");
        assert_eq!(said.code, Some(2), "{wrong}");
        assert!(said.stderr.contains("I/N with I from 1 to N"), "{wrong}: {}", said.stderr);
    }
    let single = lab.fuse("MRI/phantom_0000.png", "CT/phantom_0000.png", "a.png", &["--shard", "1/2"]);
    single.fails_with(&["two folders"]);
}
