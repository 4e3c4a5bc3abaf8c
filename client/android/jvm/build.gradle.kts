plugins {
    id("org.jetbrains.kotlin.jvm")
    application
}

kotlin { jvmToolchain(17) }

application { mainClass = "dev.fedhead.jvm.MainKt" }

dependencies { implementation(project(":core")) }
