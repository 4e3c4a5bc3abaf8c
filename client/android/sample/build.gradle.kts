plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.fedhead.sample"
    compileSdk = 34
    defaultConfig {
        applicationId = "dev.fedhead.sample"
        minSdk = 26
        targetSdk = 34
        versionCode = 1
        versionName = "1.0"
    }
}

kotlin { jvmToolchain(17) }

dependencies {
    implementation(project(":library"))
    implementation("androidx.activity:activity-ktx:1.9.1")
    implementation("androidx.work:work-runtime-ktx:2.9.1")
    implementation("org.pytorch:executorch-android:1.5.1")
}
