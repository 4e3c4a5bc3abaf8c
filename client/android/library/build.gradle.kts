plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.fedhead.android"
    compileSdk = 34
    defaultConfig { minSdk = 26 }
}

kotlin { jvmToolchain(17) }

dependencies {
    api(project(":core"))
    implementation("com.squareup.okhttp3:okhttp:4.12.0")
    // An app takes the runtime of its trainer.
    compileOnly("org.pytorch:executorch-android:1.5.1")
    // The last release of PyTorch's own Android library; it reads bytecode up to version 8.
    compileOnly("org.pytorch:pytorch_android_lite:2.1.0")
}
